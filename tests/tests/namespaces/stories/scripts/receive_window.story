# A full receive buffer closes the window; reading opens it, which a window update announces (RFC 9293, section 3.8.6.2.2).
connect rx 4000
> S 0
+20ms < S. 0 ack 1 mss 1400
> . 1 ack 1 win 4000
+10ms < . 1:1461 ack 1
> . 1 ack 1461 win 2540
+1ms < . 1461:2921 ack 1
> . 1 ack 2921 win 1080
+1ms < P. 2921:4001 ack 1
> . 1 ack 4001 win 0
# A zero-window probe.
+1s < . 4001:4002 ack 1
> . 1 ack 4001 win 0
read 4000
> . 1 ack 4001 win 4000
