"""The provider's statuses of a call, and what each does to it. Any other may come, such as ringing,
connecting and transferred: that neither starts nor ends a call.

The tuples are printed into SQL as they are: `status IN {ERRORS}`.
"""

IN_PROGRESS = "in-progress"  # starts it
ENDED = "ended"
ENDED_WITH_ERROR = "ended-with-error"
ERRORS = (ENDED_WITH_ERROR, "failed", "rejected", "insufficient-credits")  # end it with an error
FINAL = (ENDED, *ERRORS)
