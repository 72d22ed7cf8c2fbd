"""The step engine: runs ticks on the device thread, decodes images, and isolates failures.

It knows the `Feature` protocol and no feature, no message and no caller. A function that it is given decides which work
a tick does (`scheduling.ticks`).
"""
