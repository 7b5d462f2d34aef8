//! What crafter's kernel half and user half share, and nothing else.
