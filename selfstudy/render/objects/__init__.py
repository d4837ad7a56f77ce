"""The ten classes of procedural objects, a file each: a random programme that makes a shape."""
