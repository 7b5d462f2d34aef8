# The application aborts: one RST with the sequence number that the peer expects.
connect
> S 0 sackOK
+20ms < S. 0 ack 1 mss 1400 wscale 7 sackOK
> . 1 ack 1
write 10
> P. 1:11 ack 1
abort
> R. 11 ack 1
quiet 5s
finished
