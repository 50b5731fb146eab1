"""Two-step tuning with combined losses on few labelled utterances, against end-to-end tuning."""
