"""Serving: an OpenAI-compatible server, a page that shows the canvas being written, and the engine that asks a server.

Read `jobs.py` (what is asked, and what is told of it), then `scheduler.py` (who is written when), `wire.py` (the fields
of a request), `answers.py` (what goes back) and `app.py` (the addresses).
"""
