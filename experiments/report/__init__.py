"""The report of a sweep: what each change costs, with error bars, next to what 2012 says that it costs."""
