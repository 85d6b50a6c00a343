"""Readers over HTTP: what a store answers, from a server elsewhere."""
