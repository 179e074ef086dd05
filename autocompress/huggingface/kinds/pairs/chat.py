"""Write questions about pictures as the prompts that a model was trained with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from autocompress.errors import TaskError
from autocompress.huggingface.extra import quiet, told

USER, ASSISTANT = "user", "assistant"


@dataclass(frozen=True)
class Chat:
    """Turn questions and answers into tokens.

    Attributes:
        processor: of the folder.
        picture: any picture of the size of all, which decides how many tokens stand for it.
        part: number of the token that stands for a part of a picture.
        place: the model folder, for messages.
    """

    processor: Any
    picture: Any
    part: int
    place: str

    @property
    def template(self) -> str | None:
        """Return the template of conversations; None if the folder has none."""
        tokenizer = self.processor.tokenizer
        own = getattr(self.processor, "chat_template", None) or tokenizer.chat_template
        return None if own is None else str(own)

    @property
    def token(self) -> str:
        """Return the text that stands for a picture in a prompt."""
        return str(self.processor.image_token)

    def texts(self, question: str, answer: str) -> tuple[str, str]:
        """Return the text up to an answer, and the answer with what ends it.

        Args:
            question: of the user; one with the token of a picture is the whole prompt itself.
            answer: of the model.

        Returns:
            (prompt, answer).

        Raises:
            TaskError: the template of the folder fails.
        """
        end = str(self.processor.tokenizer.eos_token or "")
        if self.token in question:
            return question, answer + end
        if self.template is None:
            return f"{self.token}\n{question}\n", answer + end
        asked = {"role": USER, "content": [{"type": "image"}, {"type": "text", "text": question}]}
        told_back = {"role": ASSISTANT, "content": [{"type": "text", "text": answer}]}
        with quiet(), told(f"{self.place}: the chat template fails"):
            prompt = self._filled([asked], True)
            whole = self._filled([asked, told_back], False)
        if not whole.startswith(prompt):
            return prompt, answer + end
        return prompt, whole[len(prompt) :].rstrip()

    def tokens(self, prompt: str, answer: str, where: str) -> tuple[list[int], list[int]]:
        """Return the tokens of a prompt, with those of its picture, and of an answer.

        Args:
            prompt: as `texts` returns it.
            answer: as `texts` returns it.
            where: of the sample, for messages.

        Returns:
            (tokens of the prompt, tokens of the answer).

        Raises:
            TaskError: the processor fails, the prompt has no place for a picture, or the answer no
                token.
        """
        tokenizer = self.processor.tokenizer
        # A template writes the token that begins a text, and the tokenizer would add another one.
        begin = tokenizer.bos_token
        own = {"add_special_tokens": False} if begin and prompt.startswith(begin) else {}
        with quiet(), told(f"{where}: the processor fails"):
            inputs = self.processor(images=[self.picture], text=[prompt], **own)
            read = _without_end(list(inputs["input_ids"][0]), tokenizer, prompt)
            texts = (prompt, prompt + answer)
            plain, whole = (
                _without_end(list(tokenizer(text, **own)["input_ids"]), tokenizer, text)
                for text in texts
            )
            written = whole[len(plain) :]
            if whole[: len(plain)] != plain:  # a token reaches from the prompt into the answer
                written = list(tokenizer(answer, add_special_tokens=False)["input_ids"])
        if self.part not in read[:-1]:
            raise TaskError(f"{where}: the prompt has no place for a picture ({self.token})")
        if not written:
            raise TaskError(f"{where}: the answer has no token of its own")
        return read, written

    def _filled(self, messages: Sequence[dict[str, Any]], prompt: bool) -> str:
        filled = self.processor.apply_chat_template(
            list(messages), chat_template=self.template, add_generation_prompt=prompt
        )
        return str(filled)


def _without_end(tokens: list[int], tokenizer: Any, prompt: str) -> list[int]:
    """Return the tokens of a prompt without an end that the tokenizer puts behind every text."""
    end = {tokenizer.eos_token_id, tokenizer.sep_token_id} - {None}
    ends = [tokenizer.convert_ids_to_tokens(token) for token in end]
    while tokens and tokens[-1] in end and not prompt.rstrip().endswith(tuple(ends)):
        tokens = tokens[:-1]
    return tokens
