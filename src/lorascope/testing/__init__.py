"""Checks that other implementations of lorascope's interfaces can run on themselves."""
