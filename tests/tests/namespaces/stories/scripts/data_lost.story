# Unacknowledged data is retransmitted by the timer, which doubles each time (RFC 6298).
connect
> S 0 sackOK
+20ms < S. 0 ack 1 mss 1400 wscale 7 sackOK
> . 1 ack 1
write 100
> P. 1:101 ack 1
+1s > P. 1:101 ack 1
+2s > P. 1:101 ack 1
+20ms < . 1 ack 101
quiet 5s
state Established
