"""Making a hit verifier from labelled pairs: `cacheproxy verifier train`. Nothing here runs while serving."""
