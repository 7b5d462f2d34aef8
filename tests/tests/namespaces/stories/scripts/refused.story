# What a SYN may be answered by (RFC 9293, 3.10.7.3): only a RST that acknowledges it counts.
connect
> S 0
+10ms < R 0
quiet 100ms
state Connecting
# An ACK of something never sent is reset by its own number.
< S. 0 ack 7
> R 7
state Connecting
+10ms < R. 0 ack 1
error refused
finished
