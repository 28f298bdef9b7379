"""The command line: ``python -m fluxlike``, a file a sub-command."""
