# A SYN that nobody answers is sent again, each time after twice as long (RFC 6298, 5.5), until the program's patience ends.
connect time-out 10s
> S 0
+1s > S 0
+2s > S 0
+4s > S 0
quiet 3.1s
error SYN-ACK
finished
