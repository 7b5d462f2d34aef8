//! A throw-away network with real servers in it.
