// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What the kernel itself does to frames of a VM: `dropped` sees why it frees one that was not delivered,
 * `retransmitted` that a socket of this machine sends to a VM again. Only loaded while somebody asks. They look into
 * structs of the kernel; what they need of them is declared here, and found by name in the running one (CO-RE).
 */
#include <linux/types.h>
#include <linux/bpf.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "common.h"

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)
struct ns_common {
	unsigned int inum;
};

struct net {
	struct ns_common ns;
};

typedef struct {
	struct net *net;
} possible_net_t;

struct net_device {
	possible_net_t nd_net;
	int ifindex;
};

struct sk_buff {
	struct net_device *dev;
	unsigned int len;
	__u16 mac_header;
	unsigned int tail;
	unsigned char *head;
};

struct in6_addr___hf {
	__u8 bytes[16];
};

struct sock_common {
	__be32 skc_daddr;
	__be32 skc_rcv_saddr;
	__be16 skc_dport;
	__u16 skc_num;
	unsigned short skc_family;
	struct in6_addr___hf skc_v6_daddr;
	struct in6_addr___hf skc_v6_rcv_saddr;
};

struct sock {
	struct sock_common __sk_common;
};
#pragma clang attribute pop

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} drops_ring SEC(".maps");

/* Written by whoever asks, before the programs are attached. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct hf_asked);
} drops_asked SEC(".maps");

static __always_inline int same(const __u8 *a, const __u8 *b, int size)
{
	for (int at = 0; at < size; at++)
		if (a[at] != b[at])
			return 0;
	return 1;
}

static __always_inline void put(struct hf_asked *asked, struct hf_kernel *record)
{
	if (bpf_ringbuf_output(&drops_ring, record, sizeof(*record), BPF_RB_NO_WAKEUP))
		__sync_fetch_and_add(&asked->lost, 1);
}

SEC("tp_btf/kfree_skb")
int dropped(__u64 *ctx)
{
	struct sk_buff *skb = (void *)ctx[0];
	__u32 zero = 0, reason = ctx[2];
	struct hf_asked *asked = bpf_map_lookup_elem(&drops_asked, &zero);
	struct hf_kernel record = {};
	struct net_device *dev;
	__u32 first, length;

	if (!asked || skb->mac_header == 0xffff)
		return 0;
	first = skb->mac_header;
	if (bpf_probe_read_kernel(record.snap, 14, skb->head + first))
		return 0;
	for (__u32 vm = 0; vm < HF_ASKED; vm++) {
		if (vm >= asked->count || record.kind)
			break;
		if (same(record.snap, asked->mac[vm], 6) || same(record.snap + 6, asked->mac[vm], 6)) {
			record.kind = HF_KERNEL_DROP;
			record.source = vm;
		}
	}
	dev = skb->dev;
	if (!record.kind || (dev && asked->netns && dev->nd_net.net->ns.inum != asked->netns))
		return 0;
	length = skb->tail > first ? skb->tail - first : 0;
	if (length > sizeof(record.snap))
		length = sizeof(record.snap);
	if (!length || bpf_probe_read_kernel(record.snap, length, skb->head + first))
		length = 0;
	record.caplen = length;
	record.reason = reason;
	record.len = skb->len;
	record.ifindex = dev ? dev->ifindex : 0;
	record.time_ns = bpf_ktime_get_ns();
	record.location = ctx[1];
	put(asked, &record);
	return 0;
}

SEC("tp_btf/tcp_retransmit_skb")
int retransmitted(__u64 *ctx)
{
	struct sock *sk = (void *)ctx[0];
	__u32 zero = 0;
	struct hf_asked *asked = bpf_map_lookup_elem(&drops_asked, &zero);
	struct hf_kernel record = {};
	struct sock_common *c;
	int four, six;

	if (!asked)
		return 0;
	c = &sk->__sk_common;
	record.reason = c->skc_family;
	record.caplen = c->skc_num;
	record.len = bpf_ntohs(c->skc_dport);
	if (record.reason == 2) {
		__builtin_memcpy(record.snap, &c->skc_rcv_saddr, 4);
		__builtin_memcpy(record.snap + 16, &c->skc_daddr, 4);
	} else {
		bpf_probe_read_kernel(record.snap, 16, &c->skc_v6_rcv_saddr);
		bpf_probe_read_kernel(record.snap + 16, 16, &c->skc_v6_daddr);
	}
	for (__u32 vm = 0; vm < HF_ASKED; vm++) {
		if (vm >= asked->count || record.kind)
			break;
		four = record.reason == 2 && same(record.snap + 16, asked->four[vm], 4);
		six = record.reason != 2 && same(record.snap + 16, asked->six[vm], 16);
		if (four || six) {
			record.kind = HF_KERNEL_RETRANSMIT;
			record.source = vm;
		}
	}
	if (!record.kind)
		return 0;
	record.time_ns = bpf_ktime_get_ns();
	put(asked, &record);
	return 0;
}

char _license[] SEC("license") = "GPL";
