"""``python -m gradwarden_server.demo``."""

from gradwarden_server.demo.story import main

raise SystemExit(main())
