/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the packet programs and the service share: one struct per program, each the only value of a mapped
 * array, so that the service reads counters and writes commands as plain memory, without a system call.
 * ebpf/state.py and ebpf/trace.py mirror this file; the sizes are checked here, there, and once more when a map is mapped.
 *
 * Everything zero means: shut. No limit set is no room, no ifindex is no way out, no term is a closed guard.
 */
#ifndef HOLDFAST_COMMON_H
#define HOLDFAST_COMMON_H

#include <linux/types.h>

/*
 * The stamp: one 802.1ad tag, whose 16 bits are the low bits of the frame's sequence number. It is a tag so
 * that a TCP segment of 64 KiB stays one frame on its way through a tap.
 */
#define HF_STAMP_PROTO 0x88A8

/* Written by the program in the first cache line, by the service in the second. */
struct hf_gate {
	__u64 issued_frames; /* sequence number of the last frame let into the hold; the first is 1 */
	__u64 issued_bytes;
	__u64 overflow_frames; /* dropped: no room left under a limit */
	__u64 overflow_bytes;
	__u64 failed_frames; /* dropped: no memory for the stamp */
	__u64 reserved0[3];

	__u64 released_frames; /* sequence number up to which the hold has been emptied */
	__u64 released_bytes;
	__u64 limit_frames; /* at most 16384: the stamp must stay unambiguous */
	__u64 limit_bytes;
	__u64 hold_ifindex;
	__u64 trace; /* one bit per slot that wants to hear of frames here; 0: nobody */
	__u64 reserved1[2];
};

struct hf_inbound {
	__u64 passed_frames;
	__u64 passed_bytes;
	__u64 closed_frames; /* dropped: the front is shut, or there is no VM behind it */
	__u64 reserved0[5];

	__u64 open;
	__u64 vm_ifindex;
	__u64 trace;
	__u64 reserved1[5];
};

struct hf_guard {
	__u64 passed_frames;
	__u64 passed_bytes;
	__u64 early_frames;	/* dropped: beyond what is committed */
	__u64 closed_frames;	/* dropped: no term is open */
	__u64 unstamped_frames; /* dropped: never went through the gate */
	__u64 expired_frames;	/* dropped: the lease had run out */
	__u64 reserved0[2];

	__u64 committed; /* sequence number of the last frame that may pass */
	__u64 term;	 /* 0: closed */
	__u64 until_ns;	 /* CLOCK_MONOTONIC; from then on nothing passes */
	__u64 trace;
	__u64 reserved1[4];
};

/*
 * Tracing. Each slot is one listener with a ring buffer of its own. A program whose `trace` word has the slot's
 * bit puts a record into that ring for each frame that the slot asks for. A ring that is full costs the listener a
 * record, which is counted, and the frame nothing.
 */
#define HF_TRACE_VERSION 1
#define HF_TRACE_SLOTS 4
#define HF_TRACE_SNAP 2048  /* bytes of a frame in a record, at most */
#define HF_TRACE_FILTER 128 /* instructions of a filter, at most */

/* Where a frame was, and what became of it there. */
enum hf_point {
	HF_HELD = 1,	    /* gate: numbered, stamped, on its way into the hold */
	HF_OVERFLOW = 2,    /* gate: dropped, no room left under a limit */
	HF_FAILED = 3,	    /* gate: dropped, no memory for the stamp */
	HF_RELEASED = 4,    /* guard: on its way into the bridge */
	HF_EARLY = 5,	    /* guard: dropped, beyond what is committed */
	HF_FENCED = 6,	    /* guard: dropped, no term is open */
	HF_EXPIRED = 7,	    /* guard: dropped, the lease had run out */
	HF_UNSTAMPED = 8,   /* guard: dropped, never went through the gate */
	HF_RECEIVED = 9,    /* inbound: on its way to the VM */
	HF_SHUT = 10,	    /* inbound: dropped, the front is shut, or there is no VM behind it */
};

/* One frame at one point; `caplen` bytes of the frame follow. */
struct hf_record {
	__u8 version; /* HF_TRACE_VERSION */
	__u8 point;
	__u16 source; /* what the slot is told to call this VM */
	__u16 caplen;
	__u16 segments; /* that the frame stands for: a TCP segment of 64 KiB is one frame */
	__u32 len;	/* bytes of the frame without our stamp */
	__u16 tag_proto; /* of a tag that is beside the frame and not in it; 0: none */
	__u16 tag_tci;
	__u64 time_ns;	/* CLOCK_MONOTONIC */
	__u64 number;	/* of the frame; 0 where it has none */
	__u64 boundary; /* gate: number up to which the hold was emptied; guard: of the last frame that may pass */
	__u64 held;	/* gate: bytes in the hold before this frame */
	__u64 term;	/* guard: the open one */
	__u64 lost;	/* records that found the ring full, of this slot, until now */
};

/* An instruction of the classic packet filter, as compilers of tcpdump's expressions make them. */
struct hf_instruction {
	__u16 code;
	__u8 jt;
	__u8 jf;
	__u32 k;
};

/* Written by the programs in the first cache line, by the service in the rest. */
struct hf_slot {
	__u64 lost_frames;
	__u64 reserved0[7];

	__u64 points; /* one bit per enum hf_point */
	__u32 snap;
	__u32 source;
	__u32 instructions; /* 0: every frame */
	__u32 reserved1[11];

	struct hf_instruction filter[HF_TRACE_FILTER];
};

/* What the kernel itself did to a frame of a VM. Told while somebody asks, into a ring of its own. */
#define HF_ASKED 16 /* VMs */

enum { HF_KERNEL_DROP = 1, HF_KERNEL_RETRANSMIT = 2 };

/* A retransmission has the family as its reason, ports as caplen and len, and two addresses of 16 bytes as its snap. */
struct hf_kernel {
	__u8 kind;
	__u8 reserved0;
	__u16 source;
	__u16 caplen;
	__u16 reserved1;
	__u32 reason; /* enum skb_drop_reason of the running kernel */
	__u32 len;
	__u32 ifindex;
	__u32 reserved2;
	__u64 time_ns;
	__u64 location; /* address of the code that dropped it */
	__u8 snap[128];
};

struct hf_asked {
	__u64 lost;
	__u32 count;
	__u32 netns; /* inode number of the network namespace; 0: any */
	__u8 mac[HF_ASKED][8];
	__u8 four[HF_ASKED][4];
	__u8 six[HF_ASKED][16];
};

_Static_assert(sizeof(struct hf_gate) == 128, "hf_gate: change ebpf/state.py too");
_Static_assert(sizeof(struct hf_inbound) == 128, "hf_inbound: change ebpf/state.py too");
_Static_assert(sizeof(struct hf_guard) == 128, "hf_guard: change ebpf/state.py too");
_Static_assert(sizeof(struct hf_record) == 64, "hf_record: change ebpf/trace.py too");
_Static_assert(sizeof(struct hf_slot) == 128 + 8 * HF_TRACE_FILTER, "hf_slot: change ebpf/trace.py too");
_Static_assert(sizeof(struct hf_kernel) == 168, "hf_kernel: change ebpf/drops.py too");
_Static_assert(sizeof(struct hf_asked) == 16 + 28 * HF_ASKED, "hf_asked: change ebpf/drops.py too");

#endif
