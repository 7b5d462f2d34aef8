# Nagle's algorithm: a small segment waits for the ACK of the previous one (RFC 9293, section 3.7.4).
connect nagle
> S 0 sackOK
+20ms < S. 0 ack 1 mss 1400 wscale 7 sackOK
> . 1 ack 1
write 10
> P. 1:11 ack 1
write 10
write 5
quiet 100ms
< . 1 ack 11
> P. 11:26 ack 1
