"""``python -m gradwarden_server.cli`` is the ``gradwarden`` command."""

from gradwarden_server.cli import main

raise SystemExit(main())
