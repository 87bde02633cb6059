"""The production shell around any ASGI application. It knows no route of the application it serves."""
