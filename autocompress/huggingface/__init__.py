"""Make tasks of model folders of the transformers library.

Nothing here is imported before a folder is loaded; the extra `huggingface` brings the libraries.
"""
