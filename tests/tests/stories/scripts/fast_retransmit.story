# Three ACKs of the same number: what they ask for is sent again, without the timer (RFC 5681, 3.2).
connect
> S 0 sackOK
+20ms < S. 0 ack 1 mss 1400 wscale 7 sackOK
> . 1 ack 1
write 5000
> . 1:1461 ack 1
> . 1461:2921 ack 1
> . 2921:4381 ack 1
> P. 4381:5001 ack 1
+20ms < . 1 ack 1461
< . 1 ack 1461 sack 2921:4381
< . 1 ack 1461 sack 2921:5001
quiet 1ms
< . 1 ack 1461 sack 2921:5001
> . 1461:2921 ack 1
+20ms < . 1 ack 5001
quiet 5s
