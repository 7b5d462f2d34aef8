# A peer that stops answering: retransmissions until the configured timeout, then an error and a RST.
connect give-up 10s
> S 0 sackOK
+20ms < S. 0 ack 1 mss 1400 wscale 7 sackOK
> . 1 ack 1
write 100
> P. 1:101 ack 1
+1s > P. 1:101 ack 1
+2s > P. 1:101 ack 1
+4s > P. 1:101 ack 1
+3s > R. 101 ack 1
error acknowledgment
finished
