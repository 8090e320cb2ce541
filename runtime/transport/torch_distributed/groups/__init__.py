"""Process groups of torch: made, used with a bound on every wait, ended and made anew."""
