"""The command line, a module for every kind of command."""
