"""Is it hard to hurt? Kills, full disks, nonsense in every field, damaged images and files: see __main__.py."""
