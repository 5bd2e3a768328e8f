from gradwarden_server.demo.story import main

raise SystemExit(main())
