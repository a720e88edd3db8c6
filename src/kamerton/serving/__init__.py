"""What is served over HTTP: the server that speaks OpenAI's protocol (`app.py`, with `api_guard.py` and
`runner.py`), the labelling page (`label_app.py`), and what pages share (`pages.py`, `guard.py`, `server.py`)."""
