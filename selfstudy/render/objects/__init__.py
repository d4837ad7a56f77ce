"""The ten classes of procedural objects, one file each: random shape programs."""
