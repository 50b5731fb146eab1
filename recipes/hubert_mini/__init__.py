"""How ``speechft/hubert-mini`` was made: speech, targets, masked prediction, probes."""
