# Answers to a SYN (RFC 9293, section 3.10.7.3): only a RST that acknowledges it refuses the connection.
connect
> S 0
+10ms < R 0
quiet 100ms
state Connecting
# An ACK of data that was never sent is answered with a RST of that number.
< S. 0 ack 7
> R 7
state Connecting
+10ms < R. 0 ack 1
error refused
finished
