"""The demo: a real network trains, falls ill, and the pager knows."""
