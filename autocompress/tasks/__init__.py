"""Built-in tasks: `autocompress.tasks:easy_vqa` is the task behind `make demo`."""




