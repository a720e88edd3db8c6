"""The HTTP server that speaks OpenAI's protocol. `app.py` makes the application, `run.py` runs it."""
