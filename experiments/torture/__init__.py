"""Torture tests: kills, full disks, nonsense in every field, damaged images and files. See __main__.py."""
