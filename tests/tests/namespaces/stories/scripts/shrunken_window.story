# The peer shrinks its window (RFC 9293, section 3.8.6, requires a sender to handle that): data sent beyond it is
# retransmitted by the timer, and the connection does not stall.
connect
> S 0 sackOK
+20ms < S. 0 ack 1 mss 1400 win 2000
> . 1 ack 1
write 1000
> P. 1:1001 ack 1
+20ms < . 1 ack 1 win 0
+1s > P. 1:1001 ack 1
+20ms < . 1 ack 1001 win 500
write 100
> P. 1001:1101 ack 1
+20ms < . 1 ack 1101
quiet 5s
