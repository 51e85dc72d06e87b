"""What answers over HTTP: fine-tuning, models and answers in OpenAI's and Azure's dialects, and the page of ratings.

`server` makes a server from settings, `app` its endpoints; `dialect` is HTTP, everything beside it is not.
docs/architecture.md follows a request through the modules.
"""
