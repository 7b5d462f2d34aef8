# An unanswered SYN is retransmitted with doubling delay (RFC 6298, section 5.5) until the connect timeout.
connect time-out 10s
> S 0
+1s > S 0
+2s > S 0
+4s > S 0
quiet 3.1s
error SYN-ACK
finished
