"""Make tasks of which each is broken in one way."""

import sys
import threading

import torch
from torch import nn

from autocompress import Task


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, x):
        return self.b(torch.relu(self.a(x)))


def accuracy(o, t):
    return float((o.argmax(-1) == t).float().mean())


def base(net=None, metric=accuracy, **given):
    torch.manual_seed(0)
    x, y = torch.randn(64, 8), torch.randint(0, 3, (64,))
    data = list(zip(x.split(16), y.split(16), strict=True))
    own = {
        "model": Net() if net is None else net,
        "example_inputs": x[:1],
        "validation": data,
        "metric": metric,
        "train": data,
    }
    return Task("t", **{**own, **given})


def ok():
    return base()


def raises_metric(o, t):
    raise ValueError("metric broke")  # its line is named in the error


def metric_raises():
    return base(metric=raises_metric)


def metric_string():
    return base(metric=lambda o, t: "good")


def metric_tensor():
    return base(metric=lambda o, t: o.argmax(1) == t)


class Second(Net):
    def forward(self, x):
        if float(x[0, 0]) > 100:
            raise RuntimeError("second batch broke")  # its line is named in the error
        return super().forward(x)


def forward_second():
    task = base(Second())
    task.validation[1][0][0, 0] = 1000.0
    return task


class Loader:
    def __init__(self, data):
        self.data = data

    def __iter__(self):
        yield self.data[0]
        raise OSError("file 2 is gone")  # its line is named in the error


def loader_raises():
    return base(validation=Loader(base().validation))


def wrong_dtype():
    return base(validation=[(x.long(), y) for x, y in base().validation])


def labels_out():
    return base(train=[(x, y + 7) for x, y in base().validation])


def empty():
    return base(validation=[])


def empty_batch():
    return base(
        validation=[*base().validation, (torch.zeros(0, 8), torch.zeros(0, dtype=torch.long))]
    )


def with_value(name, value, net=None):
    net = Net() if net is None else net
    net.get_parameter(name).data.view(-1)[1] = value
    return base(net)


def nan_weight():
    return with_value("a.weight", float("nan"))


def infinite_weight():
    return with_value("b.weight", float("inf"))


def infinite_bias():
    return with_value("b.bias", -float("inf"))


def infinite_half():
    return with_value("a.weight", float("inf"), Net().half())


def beyond_float32():
    return with_value("a.weight", 1e300, Net().double())


def infinite_frozen():
    return with_value("b.weight", -float("inf"), Net().requires_grad_(False))


class Normed(Net):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(8)

    def forward(self, x):
        return super().forward(self.norm(x))


def infinite_statistic():
    net = Normed()
    net.norm.running_var[3] = float("inf")
    return base(net)


class Masked(Net):
    def __init__(self):
        super().__init__()
        hidden = torch.zeros(3)
        hidden[2] = -float("inf")
        self.mask = nn.Parameter(hidden, requires_grad=False)
        self.register_buffer("seen", torch.full((2,), float("nan")))

    def forward(self, x):
        return super().forward(x) + self.mask


def masks():
    return base(Masked(), train=None)


class Returns(nn.Module):
    def __init__(self, answer):
        super().__init__()
        self.a, self.answer = nn.Linear(8, 3), answer

    def forward(self, x):
        return self.answer(self.a(x))


def nan_outputs():
    return base(Returns(lambda o: o * float("nan")))


def nan_rows():
    return base(Returns(lambda o: torch.where(o[:, :1] > 0, o, float("nan"))))


def string():
    return base(Returns(lambda o: "hello"))


def only_none():
    return base(Returns(lambda o: {"logits": None}))


def none_values():
    return base(Returns(lambda o: {"logits": o, "loss": None, "count": 3}))


def integers():
    return base(Returns(lambda o: o.argmax(1)), metric=lambda o, t: float((o == t).float().mean()))


def exits():
    return base(Returns(lambda o: sys.exit(3)))


def meta():
    with torch.device("meta"):
        return base(Net())


def uncopyable():
    net = Net()
    net.lock = threading.Lock()
    return base(net)


def function():
    return base(lambda x: x)


def no_model():
    return base(model=None)


def missing_file():
    open("/no/such/weights.pt")  # noqa: SIM115 (its line is named in the error)


def key():
    raise KeyError("a")
