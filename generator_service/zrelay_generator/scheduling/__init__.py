"""One order for waiting and running jobs: shares of device time, the queue, tick selection, admission.

`order.ranked` defines the order. The scheduler uses it to decide which jobs are loaded next, tick selection to decide
which work the device does. For positions and ETAs of thousands of waiting jobs the scheduler computes the same finish
tags from sums; a property test compares the two. docs/explanation/scheduling.md lists what the order guarantees.
"""
