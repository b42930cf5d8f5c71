"""Engine: the life of a request, from the queue to the answer, and the work done when nobody waits."""
