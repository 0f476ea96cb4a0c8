"""Platform that is brought to a state in which every panel of every dashboard has something to show, by real requests alone."""
