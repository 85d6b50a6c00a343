"""What runs inside a tracer's environment: the application, and what notes what came of it.

Imports no more than the application itself needs, and nothing of Spanloom.
"""
