"""One order for waiting and running jobs: shares of device time, the queue, tick selection, admission.

`order.ranked` is the only place that orders jobs. The scheduler uses it to decide which jobs are loaded next, tick
selection to decide which work the device does. docs/explanation/scheduling.md lists what the order guarantees.
"""
