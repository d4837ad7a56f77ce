"""Stand-ins that several test files share."""


class Running:
    """As much of one of Ray's trials as schedulers look at."""

    status = "RUNNING"

    def __init__(self, number):
        self.trial_id, self.config = f"ray-{number}", {"number": number}

    def is_finished(self):
        return False
