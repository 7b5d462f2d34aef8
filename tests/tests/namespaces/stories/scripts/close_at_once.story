# Both ends close at the same time: the FINs cross (RFC 9293, figure 13).
connect
> S 0 sackOK
+20ms < S. 0 ack 1 mss 1400 wscale 7 sackOK
> . 1 ack 1
close
> F. 1 ack 1
+5ms < F. 1 ack 1
> . 2 ack 2
eof
+15ms < . 2 ack 2
quiet 1.1s
finished
