# Delayed ACKs: the ACK of a small segment is sent after a delay or with data (RFC 5681, section 4.2).
connect acks-after 40ms
> S 0 sackOK
+20ms < S. 0 ack 1 mss 1400 wscale 7 sackOK
> . 1 ack 1
+10ms < P. 1:101 ack 1
+40ms > . 1 ack 101
+10ms < P. 101:201 ack 1
quiet 10ms
write 50
> P. 1:51 ack 201
read 200
