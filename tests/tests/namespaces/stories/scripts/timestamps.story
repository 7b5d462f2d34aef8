# Timestamps (RFC 7323): each segment has one and echoes the peer's; a segment after a gap is not echoed (section 4.3).
connect timestamps
> S 0 sackOK ts 0 0
+20ms < S. 0 ack 1 mss 1400 wscale 7 sackOK ts 0 0
> . 1 ack 1 ts 20 0
write 100
> P. 1:101 ack 1 ts 20 0
+30ms < . 1 ack 101 ts 30 20
+10ms < P. 101:201 ack 101 ts 40 20
> . 101 ack 1 sack 101:201 ts 60 30
+10ms < P. 1:101 ack 101 ts 50 20
> . 101 ack 201 ts 70 50
read 200
# The peer's clock wraps at 2^32.
+1s < P. 201:301 ack 101 ts 1050 70
> . 101 ack 301 ts 1070 1050
read 100
# A retransmission has the time at which it is sent, so that its echo measures the round trip.
write 100
> P. 101:201 ack 301 ts 1070 1050
+1s > P. 101:201 ack 301
+20ms < . 301 ack 201 ts 2100 2070
quiet 5s
state Established
