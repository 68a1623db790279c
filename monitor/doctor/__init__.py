"""The doctor: walks the set-up of one mailbox step by step, and says what to do where it fails."""
