"""The server of one machine: an index over HTTP. See docs/serving.md.

`application` answers requests, `library` holds the index and what belongs to it, `guard` stands
before the application, `wire` has the forms of requests and answers. Nothing here imports
PyTorch, unless the index remembers models or some are named.
"""
